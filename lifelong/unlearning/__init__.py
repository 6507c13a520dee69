from lifelong.core.discover import lazy

__getattr__, __dir__ = lazy("unlearning")
