"""Listening tests: web pages for raters, a server that saves their answers, means with intervals."""
