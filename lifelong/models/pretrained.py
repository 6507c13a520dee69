from lifelong.store.pretrained import *  # noqa
