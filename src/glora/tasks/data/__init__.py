"""Where examples come from, one file a source; one more is a file here and a line in `SOURCES` (no torch)."""

__all__ = ["SOURCES"]

SOURCES = {  # packaged data sets, then formats of files; the last format is what a folder is taken for
    "climate": "glora.tasks.data.climate:Climate",
    "count": "glora.tasks.data.count:Count",
    "digits": "glora.tasks.data.packaged:Digits",
    "dsprites_loc": "glora.tasks.data.sprites:DSpritesLoc",
    "dsprites_ori": "glora.tasks.data.sprites:DSpritesOri",
    "fashion_mnist": "glora.tasks.data.packaged:FashionMNIST",
    "textile": "glora.tasks.data.packaged:Textile",
    "wordnet_words": "glora.tasks.data.wordnet:WordNetWords",
    "wordnet_choices": "glora.tasks.data.wordnet:WordNetChoices",
    "wordnet_classes": "glora.tasks.data.wordnet:WordNetClasses",
    "chatterbot": "glora.tasks.data.chatterbot:Chatterbot",
    "arithmetic": "glora.tasks.data.arithmetic:Arithmetic",
    "fewshot": "glora.tasks.data.fewshot:FewShot",
    "imagenet": "glora.tasks.data.imagenet:ImageNet",
    "torchvision": "glora.tasks.data.torchvision_sets:TorchvisionSet",
    "vtab": "glora.tasks.data.vtab:Vtab",
    "from_python": "glora.tasks.data.from_python:FromPython",
    "text_from_python": "glora.tasks.data.text_from_python:TextFromPython",
    "webdataset": "glora.tasks.data.webdataset:WebDataset",
    "text": "glora.tasks.data.text:Text",
    "hugging_face": "glora.tasks.data.hugging_face:HuggingFace",
    "image_table": "glora.tasks.data.image_table:ImageTable",
    "image_folder": "glora.tasks.data.image_folder:ImageFolder",
}
