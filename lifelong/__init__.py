"""Keep teaching one pretrained model, and say in numbers what it learned and what it lost."""

__version__ = "0.1.0"
