"""A trained run behind HTTP: a page to try it and a JSON endpoint, with limits on what comes in."""
