"""Listening tests: web pages for raters, a server that keeps their answers, means with intervals."""
