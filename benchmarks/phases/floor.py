"""What the phases of a GRPO step have to do at least: matrix products, attention, bytes of weights and caches.

Left out are activations, normalisation, rotary embedding, softmax and sampling, so a floor cannot be reached.
"""

from dataclasses import dataclass
from math import prod

from r1parallel.config.model import ModelConfig

ITEM = 4  # bytes of fp32
# Forms of a product: x·Wᵀ of many rows, of the few rows of a rollout; gradient·W; gradientᵀ·x.
FORMS = ("forward", "few_rows", "input_gradient", "weight_gradient")
# What an update moves of every parameter's numbers besides reading the weights in each forward and backward pass:
_PER_LAUNCH = 2  # the sum of its gradients is read and written
_PER_UPDATE = 1 + 4 + 4  # the norm reads the sum; Adam reads weight, sum and moments, and writes all four


@dataclass(frozen=True)
class Product:
    """[rows, ins] and a weight [outs, ins], in one of FORMS."""

    form: str
    rows: int
    ins: int
    outs: int

    @property
    def flops(self) -> int:
        """Of a multiplication and an addition for each pair."""
        return 2 * self.rows * self.ins * self.outs


@dataclass(frozen=True)
class Floor:
    """What a phase does at least."""

    products: dict[Product, int]  # → how often
    attention_flops: int
    weight_bytes: int
    cache_bytes: int = 0

    @property
    def flops(self) -> int:
        return self.attention_flops + sum(product.flops * times for product, times in self.products.items())


@dataclass(frozen=True)
class Step:
    """Sizes of a step: P prompts of `prompt` tokens, `group` completions of `completion` tokens of each."""

    prompts: int
    group: int
    prompt: int
    completion: int

    @property
    def row_tokens(self) -> int:
        """Of a packed row: a prompt and all its completions."""
        return self.prompt + self.group * self.completion

    @property
    def row_keys(self) -> int:
        """Sum over the tokens of a packed row of the tokens that they attend to."""
        return triangle(self.prompt) + self.group * (self.completion * self.prompt + triangle(self.completion))


def rollout(config: ModelConfig, step: Step) -> Floor:
    """Each prompt once, without its last token; then a token for all completions at a time, the prompt's last first."""
    rows, fed = step.prompts * step.group, step.prompt - 1
    products = times(_layer(config, "forward", step.prompts * fed), config.num_layers - 1)
    last = Product("forward", step.prompts * fed, config.hidden_size, config.kv_size)
    products = together(products, {last: 2})  # only keys and values: nothing reads its output
    token = together(times(_layer(config, "few_rows", rows), config.num_layers), _head(config, "few_rows", rows))
    products = together(products, times(token, step.completion))
    keys = rows * (step.completion * fed + triangle(step.completion))  # that drawn tokens attend to
    passes = step.completion * weights(config) + weights(config) - _head_weights(config)
    filled = step.prompts * triangle(fed)
    return Floor(
        products,
        _attention(config, config.num_layers * keys + (config.num_layers - 1) * filled),
        passes * ITEM,
        2 * keys * config.kv_size * config.num_layers * ITEM,
    )


def reference(config: ModelConfig, step: Step, rows: int) -> Floor:
    """Log-probs of packed rows, `rows` of them in a launch, which divides their number."""
    launches = step.prompts // rows
    return Floor(
        times(_forward(config, rows * step.row_tokens, rows * step.group * step.completion), launches),
        _attention(config, config.num_layers * step.prompts * step.row_keys),
        launches * weights(config) * ITEM,
    )


def training(config: ModelConfig, step: Step, rows: int) -> Floor:
    """Forward, backward and an update. Attention has two products in the forward pass and four in the backward pass."""
    forward = reference(config, step, rows)
    products = forward.products
    for form in ("input_gradient", "weight_gradient"):
        back = {Product(form, p.rows, p.ins, p.outs): count for p, count in forward.products.items()}
        products = together(products, back)
    launches = step.prompts // rows
    numbers = sum(map(prod, config.parameter_shapes().values()))
    moved = launches * _PER_LAUNCH + _PER_UPDATE
    return Floor(products, 3 * forward.attention_flops, 2 * forward.weight_bytes + moved * numbers * ITEM)


def weights(config: ModelConfig) -> int:
    """Elements of the matrices that a token goes through."""
    layer = sum(p.ins * p.outs * count for p, count in _layer(config, "forward", 1).items())
    return config.num_layers * layer + _head_weights(config)


def triangle(count: int) -> int:
    """1 + 2 + … + count: what tokens attend to that begin a text."""
    return count * (count + 1) // 2


def times(products: dict[Product, int], factor: int) -> dict[Product, int]:
    return {product: count * factor for product, count in products.items()}


def together(one: dict[Product, int], other: dict[Product, int]) -> dict[Product, int]:
    return {product: one.get(product, 0) + other.get(product, 0) for product in one | other}


def _layer(config: ModelConfig, form: str, rows: int) -> dict[Product, int]:
    hidden, inner, narrow = config.hidden_size, config.intermediate_size, config.kv_size
    shapes = [(hidden, hidden), (hidden, narrow), (hidden, narrow), (hidden, hidden)]  # query, key, value, output
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    found: dict[Product, int] = {}
    for ins, outs in shapes:
        found = together(found, {Product(form, rows, ins, outs): 1})
    return found


def _head(config: ModelConfig, form: str, rows: int) -> dict[Product, int]:
    return {Product(form, rows, config.hidden_size, config.vocab_size): 1}


def _head_weights(config: ModelConfig) -> int:
    return config.hidden_size * config.vocab_size


def _forward(config: ModelConfig, tokens: int, targets: int) -> dict[Product, int]:
    layers = times(_layer(config, "forward", tokens), config.num_layers)
    return together(layers, _head(config, "forward", targets))


def _attention(config: ModelConfig, keys: int) -> int:
    """Scores and weighted values for `keys` pairs of a token and one that it attends to, of all layers together."""
    return 4 * config.hidden_size * keys
