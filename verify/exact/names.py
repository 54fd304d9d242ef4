"""Names of the torch functions that have a model, by what they do; an operation and its in-place form share one."""

from collections.abc import Mapping


def _words(text: str) -> list[str]:
    return text.split()


def _spellings(table: Mapping[str, str]) -> dict[str, str]:
    return {spelling: name for name, spellings in table.items() for spelling in _words(spellings)}


# These read no value, so they run on the NaN that stands for it.
METADATA = frozenset(
    _words(
        "shape size dim ndim ndimension device dtype layout numel nelement is_cuda is_floating_point is_complex requires_grad "
        "__len__ stride is_contiguous element_size itemsize nbytes get_device is_leaf grad_fn is_sparse is_quantized is_meta "
        "is_mps is_nested zeros_like ones_like empty_like new_zeros new_ones new_empty "
        "result_type __hash__ is_inference"
    )
)
VIEWS = frozenset(
    _words(
        "__getitem__ view reshape unsqueeze squeeze expand flatten transpose permute t T mT swapaxes movedim narrow select "
        "unbind chunk split tensor_split detach contiguous view_as reshape_as expand_as ravel unflatten broadcast_to "
        "__iter__ data diagonal unfold"
    )
)
COPIES = frozenset(_words("clone repeat repeat_interleave gather index_select flip roll take take_along_dim tile"))
JOINS = frozenset(_words("cat concat concatenate stack hstack vstack"))
CONVERSIONS = frozenset(_words("to float double cpu cuda type type_as"))
COMPARISONS = _spellings(
    {
        "lt": "lt __lt__ less",
        "le": "le __le__ less_equal",
        "gt": "gt __gt__ greater",
        "ge": "ge __ge__ greater_equal",
        "eq": "eq __eq__",
        "ne": "ne __ne__ not_equal",
    }
)
ARITHMETIC = _spellings(
    {
        "add": "add __add__ __radd__",
        "sub": "sub subtract __sub__",
        "rsub": "rsub __rsub__",
        "mul": "mul multiply __mul__ __rmul__",
        "div": "div divide true_divide __truediv__",
        "rdiv": "__rtruediv__ __rdiv__",
        "neg": "neg negative __neg__",
        "log": "log",
        "log1p": "log1p",
        "exp": "exp",
        "reciprocal": "reciprocal",
        "clamp": "clamp clip",
        "clamp_min": "clamp_min",
        "clamp_max": "clamp_max",
    }
)
IN_PLACE = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div"} | {
    f"{spelling}_": name for spelling, name in ARITHMETIC.items() if not spelling.startswith("__")
}
