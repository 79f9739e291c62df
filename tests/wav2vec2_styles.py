"""The two forms of wav2vec2 and HuBERT models (pytest puts this folder on the path)."""

# layer: as XLSR-53 and the large models; group: as the base models.
STYLES = {
    "layer": dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "group": dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False),
}
