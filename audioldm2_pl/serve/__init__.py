"""An HTTP API and a page for one model."""
