"""A trained network, tensorised by every form and distilled both ways: `python bench/compress`."""
