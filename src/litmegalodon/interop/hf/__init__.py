"""The model and its tokenizer as transformers knows them; importing this registers the classes.

    import litmegalodon.interop.hf
    AutoModelForCausalLM.from_pretrained("export"), AutoTokenizer.from_pretrained("export")

No code is in an export, and none is run from it: trust_remote_code is never needed.
"""

from importlib.util import find_spec

if find_spec("transformers") is None:
    raise ImportError(
        "litmegalodon.interop.hf: transformers is not installed; pip install 'litmegalodon[hf]'"
    )

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from litmegalodon.interop.hf.cache import MegalodonCache
from litmegalodon.interop.hf.configuration import MegalodonConfig
from litmegalodon.interop.hf.modeling import MegalodonForCausalLM
from litmegalodon.interop.hf.tokenization import MegalodonTokenizer

AutoConfig.register(MegalodonConfig.model_type, MegalodonConfig, exist_ok=True)
AutoModelForCausalLM.register(MegalodonConfig, MegalodonForCausalLM, exist_ok=True)
AutoTokenizer.register(MegalodonConfig, tokenizer_class=MegalodonTokenizer, exist_ok=True)

__all__ = ["MegalodonCache", "MegalodonConfig", "MegalodonForCausalLM", "MegalodonTokenizer"]
