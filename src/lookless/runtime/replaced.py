"""A method of one module that a plan replaces on the instance, and gives back."""

from __future__ import annotations

import copy
import functools
from typing import Any

from ..errors import ModelError


class Replaced:
    """Replaces a method of one module, mostly its ``forward``.

    Another library may put a wrapper of its own over it, and call it, or put it back, after the plan was removed: then
    it passes calls on to the method that it replaced.
    """

    is_removed = False

    def __init__(self, module: Any, handle: Any, method: str = "forward") -> None:
        self.module, self.handle, self.method = module, handle, method
        self.stock = getattr(module, method)
        functools.update_wrapper(self, self.stock, updated=())
        setattr(module, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.stock if self.is_removed else self.planned)(*args, **kwargs)

    def planned(self, *args: Any, **kwargs: Any) -> Any:
        """What is called in its place while the plan is in force."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Replaced:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce__(self) -> Any:
        raise ModelError(
            "a model under a plan cannot be pickled: call remove() on the plan first, write it with save_pretrained, "
            "and apply it to the model that is read."
        )

    def remove(self) -> None:
        self.is_removed = True
        if self.module.__dict__.get(self.method) is not self:
            return
        # What was there before was the class's method, or another library's attribute on this instance.
        if getattr(self.stock, "__func__", None) is getattr(type(self.module), self.method):
            delattr(self.module, self.method)
        else:
            setattr(self.module, self.method, self.stock)
