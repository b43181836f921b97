"""The model card of an exported model, with headings for what the author has to add."""

from nvembed.model.config import ModelConfig
from nvembed.text.tokenize import TextSettings

_CARD = """---
library_name: nvembed
pipeline_tag: sentence-similarity
{licence}{base_model}tags:
- sentence-embeddings
- retrieval
---

# {name}

A text-embedding model: {dim} dimensions, texts of up to {max_length:,} tokens, {layers} layers of a
{architecture} decoder, {pooling} pooling. This folder has the results of training: a low-rank adapter in
peft's format and the pooler. The backbone comes from {base}. When the model loads, the backbone is checked
against the fingerprint in `config.json`, and the adapter is merged into it.

```python
from nvembed import Encoder

model = Encoder.from_pretrained("{name}")
queries = model.encode_query(["are judo throws allowed in wrestling?"], task="NQ")
passages = model.encode_document(["Judo throws are allowed in freestyle wrestling."])
print(model.similarity(queries, passages))
```

## Training data and licences

To be filled in: the sets, how many examples of each, and their licences.

## Recipe

To be filled in: the recipe, the steps of each stage, the hardware and the hours.

## Scores

| task | this model |
|---|---|
| | not measured |
"""
_POOLING = {"latent": "latent-attention", "mean": "mean", "eos": "EOS", "self": "self-attention"}


def model_card(
    name: str,
    config: ModelConfig,
    text: TextSettings,
    *,
    base: str,
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """Return ``README.md``; ``base_model`` is the backbone's hub id, if it has one."""
    return _CARD.format(
        name=name,
        dim=config.backbone.hidden_size,
        max_length=text.max_length,
        layers=config.backbone.num_layers,
        architecture=config.decoder.architecture,
        pooling=_POOLING[config.pooling],
        base=base,
        base_model=f"base_model: {base_model}\n" if base_model else "",
        licence=f"license: {licence}\n" if licence else "",
    )
