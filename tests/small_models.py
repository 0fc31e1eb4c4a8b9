"""Constructor arguments that make every VQGAN and TiTok of the zoo small."""

PYRAMID = {"encoder": {"widths": [32, 32], "num_res_blocks": 1, "latent_channels": 8}}
CODES = {"num_embeddings": 16, "embedding_dim": 4}
VIT = {"width": 32, "layers": 1, "num_heads": 2, "patch_size": 4}
PIXELS = {"widths": [32, 32, 32], "num_res_blocks": 1, "latent_channels": 8}
TITOK = {"encoder": VIT, "image_size": 16, "num_latent_tokens": 5, "quantizer": CODES}

SMALL = {
    "vqgan-f8": {**PYRAMID, "quantizer": CODES},
    "vqgan-f16": {**PYRAMID, "quantizer": CODES},
    "var-f16": {**PYRAMID, "quantizer": {**CODES, "patch_nums": [1, 2, 4, 8], "quantizer": CODES}},
    "llamagen-f16": {**PYRAMID, "quantizer": CODES},
    "titok-s128": {**TITOK, "pixel_decoder": PIXELS, "num_pixel_codes": 8},
    "titok-b64": {**TITOK, "pixel_decoder": PIXELS, "num_pixel_codes": 8},
    "titok-l32": {**TITOK, "pixel_decoder": PIXELS, "num_pixel_codes": 8},
    "titok-bl64": {**TITOK, "decoder": VIT},
    "titok-bl128": {**TITOK, "decoder": VIT},
    "titok-sl256": {**TITOK, "decoder": VIT},
}
