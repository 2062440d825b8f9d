"""Triton's interpreter, which runs kernels on the CPU, at a bearable speed."""


def quicken() -> None:
    """Make the interpreter two to three times as fast.

    It replaces the functions of triton.language at each call of each function, which takes most of
    its time. Here it does so once and for good.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    class Everything:
        __globals__ = {"tl": tl, "core": tl.core}  # noqa: RUF012

    class Nothing:
        def restore(self) -> None:
            pass

    if interpreter._patch_lang.__module__ == interpreter.__name__:
        interpreter._patch_lang(Everything)
        interpreter._patch_lang = lambda function: Nothing()
