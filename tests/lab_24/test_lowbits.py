"""The networks that lab 24 quantises compute what they claim to compute."""
import torch

from course import lowbits, models, timing


def trained_a_little() -> tuple[lowbits.MobileNet, torch.Tensor]:
    """A network whose BatchNorms have seen something, and images."""
    torch.manual_seed(0)
    model, x = lowbits.MobileNet((4, 8, 8), classes=5), torch.rand(16, 1, 28, 28)
    for norm in model.norms:
        torch.nn.init.uniform_(norm.weight, 0.2, 3)
        torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        model(x)
    return model.eval(), x


def test_a_folded_network_computes_the_same():
    model, x = trained_a_little()
    with torch.no_grad():
        torch.testing.assert_close(lowbits.Folded(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_weights_and_inputs_pass_through_the_two_functions():
    model, x = trained_a_little()
    net = lowbits.Folded(model)
    seen = []
    net.on_weight = lambda i, w: seen.append(("weight", i, tuple(w.shape))) or w
    net.on_input = lambda i, x: seen.append(("input", i, tuple(x.shape))) or x
    net(x)
    layers = range(len(net.weights))
    assert [i for kind, i, _ in seen if kind == "weight"] == [i for kind, i, _ in seen if kind == "input"] == list(layers)
    assert [shape for kind, _, shape in seen if kind == "weight"] == [tuple(w.shape) for w in net.weights]
    assert [tuple(x.shape) for x in net.inputs(x)] == [shape for kind, _, shape in seen if kind == "input"][:len(layers)]


def test_a_copy_is_apart_and_has_no_functions():
    model, x = trained_a_little()
    net = lowbits.Folded(model)
    before, net.on_input = net(x), lambda i, x: 0 * x
    other = net.copy()
    torch.testing.assert_close(other(x), before)
    other.weights[0].data.zero_()
    assert float(net.weights[0].detach().abs().sum()) > 0


def test_planted_outliers_change_the_inputs_and_not_the_outputs():
    torch.manual_seed(0)
    model = models.Transformer(d=32, layers=2, length=8)
    tokens, largest = torch.randint(256, (4, 8)), []
    planted = lowbits.plant_outliers(model, 100, channels=(3, 17))
    for block in planted.blocks:
        block.qkv.register_forward_pre_hook(lambda m, args: largest.append(args[0].abs().flatten(0, -2).amax(0)))
    with torch.no_grad():
        torch.testing.assert_close(planted(tokens), model(tokens), rtol=1e-3, atol=1e-4)
    for x in largest:
        assert set(x.topk(2).indices.tolist()) == {3, 17} and x.max() > 20 * x.median()


def test_the_peak_of_integer_products_is_measured():
    assert timing.peak_flops("cpu", torch.int8) > 1e6


def test_replaced_linear_layers_see_rows_and_leave_the_model_alone():
    torch.manual_seed(0)
    model, tokens = models.Transformer(d=32, layers=2, length=8), torch.randint(0, 96, (3, 8))
    before, largest = model(tokens), lowbits.largest_inputs(model, tokens)
    assert set(largest) == set(lowbits.linears(model)) and all(name.startswith("blocks") for name in largest)
    seen = {}

    def look(name, layer):
        def rows(x):
            seen[name] = x
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        return rows
    torch.testing.assert_close(lowbits.replace_linears(model, look)(tokens), before)
    for name, x in seen.items():
        assert len(x) == tokens.numel()
        torch.testing.assert_close(x.abs().amax(0), largest[name])
    torch.testing.assert_close(model(tokens), before)
