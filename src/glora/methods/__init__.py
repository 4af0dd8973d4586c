"""Methods: each turns a backbone into something trainable; one file a family, one line each in `METHODS` (no torch)."""

__all__ = ["METHODS"]

METHODS = {
    "glora": "glora.methods.glora:GLoRA",  # the supernet
    "lora": "glora.methods.lora:LoRA",
    "hira": "glora.methods.hira:HiRA",
    "biases": "glora.methods.lora:Biases",
    "fact": "glora.methods.fact:FacT",
    "ssf": "glora.methods.ssf:SSF",
    "repadapter": "glora.methods.repadapter:RepAdapter",
    "bitfit": "glora.methods.subset:BitFit",
    "adapter": "glora.methods.adapter:Adapter",
    "adaptformer": "glora.methods.adaptformer:AdaptFormer",
    "vpt": "glora.methods.vpt:VPT",
    "noah": "glora.methods.noah:NOAH",  # a supernet too
    "pft": "glora.methods.pft:PFT",  # a supernet too
    "linear": "glora.methods.subset:LinearProbe",
    "full": "glora.methods.subset:Full",
}
