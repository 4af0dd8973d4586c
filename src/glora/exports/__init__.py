"""What leaves glora for other libraries: adapters in their formats, and the merged model; one file a format."""

from __future__ import annotations

__all__ = ["EXPORTS"]

EXPORTS: dict[str, str] = {
    "huggingface": "glora.exports.huggingface:HuggingFace",
    "onnx": "glora.exports.onnx_model:Onnx",
    "peft": "glora.exports.peft_lora:PeftLora",
    "peft-glora": "glora.exports.peft_glora:PeftGlora",
    "torch": "glora.exports.torch_program:TorchProgram",
    "vllm": "glora.exports.vllm:Vllm",
}
