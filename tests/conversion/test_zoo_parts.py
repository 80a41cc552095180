"""Detectors and segmenters: which parts become deformable, and that their outputs stay the same."""

import copy
from collections import Counter

import pytest
import timm
import torch
import torchvision
from helpers import deformable, randomise_offsets
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection, segmentation
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from zoo.scripts.config.schema import DCN

import zoo
from zoo import DCNConfig, inject_, plan
from zoo.parts import find_parts

ALL = DCNConfig(parts=("backbone", "neck", "head"))
TINY = {"weights": None, "weights_backbone": None}
SMALL = {**TINY, "min_size": 64, "max_size": 96, "num_classes": 5}
FEW = {"box_detections_per_img": 5, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
ALL_SCORES = {"score_thresh": 0.0, "detections_per_img": 20}
OUTPUTS = {
    f"head.{name}"
    for name in ("classification_head.cls_logits", "regression_head.bbox_reg", "regression_head.bbox_ctrness")
}


class Pyramid(nn.Module):
    """A timm network with torchvision's pyramid, as torchvision's detectors take it."""

    def __init__(self, name="resnet18"):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 32)
        self.out_channels = 32

    def forward(self, x):
        return self.fpn({str(i): y for i, y in enumerate(self.body(x))})


def anchors(count):
    return AnchorGenerator(tuple((8 * 2**i,) for i in range(count)), ((1.0,),) * count)


def fcos(name="resnet18"):
    return detection.FCOS(
        Pyramid(name), num_classes=5, anchor_generator=anchors(3), min_size=64, max_size=96, **ALL_SCORES
    )


def retinanet():
    return detection.RetinaNet(
        Pyramid(), num_classes=5, anchor_generator=anchors(3), min_size=64, max_size=96, **ALL_SCORES
    )


def rcnn(cls):
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    more = {"mask_roi_pool": torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 14, 2)} if "Mask" in cls else {}
    return getattr(detection, cls)(
        Pyramid(),
        num_classes=5,
        rpn_anchor_generator=anchors(3),
        box_roi_pool=pool,
        min_size=64,
        max_size=96,
        **FEW,
        **more,
    )


DETECTORS = {
    "FCOS": fcos,
    "RetinaNet": retinanet,
    "Faster R-CNN": lambda: rcnn("FasterRCNN"),
    "Mask R-CNN": lambda: rcnn("MaskRCNN"),
    "torchvision's RetinaNet": lambda: detection.retinanet_resnet50_fpn(**SMALL, **ALL_SCORES),
    "torchvision's Faster R-CNN": lambda: detection.fasterrcnn_resnet50_fpn(**SMALL, **FEW),
}


def lively(model):
    """Return a model in eval mode whose norms and biases do something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def outputs(model, images):
    with torch.no_grad():
        found = model(images)
    return [t for one in found for t in one.values()] if isinstance(found, list) else [*found.values()]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_keeps_its_outputs_and_converts_its_late_stages(name):
    torch.manual_seed(0)
    model = lively(DETECTORS[name]())
    model = model.double()
    images = [torch.rand(3, 64, 64).double(), torch.rand(3, 64, 80).double()]
    before = outputs(model, images)
    inject_(model)
    names = set(deformable(model))
    assert all(n.startswith("backbone.body.layer") and n[len("backbone.body.layer")] in "234" for n in names)
    assert len(names) == (12 if isinstance(model.backbone, Pyramid) else 13)
    after = outputs(model, images)
    assert sum(t.numel() for t in before) > 0
    # In float64, where no two scores change their order.
    assert all(torch.allclose(one, other, atol=1e-8) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["FCOS", "Mask R-CNN"])
def test_all_parts_of_a_detector_keep_its_outputs(name):
    torch.manual_seed(0)
    model = lively(DETECTORS[name]()).double()
    images = [torch.rand(3, 64, 64).double()]
    before = outputs(model, images)
    inject_(model, ALL)
    after = outputs(model, images)
    assert all(torch.allclose(one, other, atol=1e-8) for one, other in zip(before, after, strict=True))
    randomise_offsets(model)
    assert any(
        one.shape != other.shape or not torch.allclose(one, other, atol=1e-3)
        for one, other in zip(before, outputs(model, images), strict=True)
    )


def test_output_layers_and_stems_stay_plain_unless_asked_for():
    able = {n for n, m in fcos().named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) >= 3}
    stem = {"backbone.body.conv1"}
    layer1 = {n for n in able if n.startswith("backbone.body.layer1")}
    assert set(deformable(inject_(fcos(), ALL))) == able - OUTPUTS - stem - layer1
    everything = DCNConfig(
        parts=("backbone", "neck", "head"), stages=(0, 1, 2, 3, 4), output_layers=True, stem=True
    )
    assert set(deformable(inject_(fcos(), everything))) == able
    refused = plan(fcos(), ALL).refused
    assert {n for n, reason in refused.items() if "computes an output of the network; output_layers" in reason} == (
        OUTPUTS
    )
    assert refused["backbone.body.conv1"] == "reads the image"


def test_the_last_convolutions_of_the_towers():
    model = inject_(fcos(), DCNConfig(parts=("head",), towers="last"))
    assert set(deformable(model)) == {"head.classification_head.conv.9", "head.regression_head.conv.9"}
    injection = plan(rcnn("FasterRCNN"), DCNConfig(parts=("head",), towers="last"))
    assert [r.fqn for r in injection.replacements] == ["rpn.head.conv.0.0"]
    segmenter = inject_(
        segmentation.deeplabv3_resnet50(**TINY, num_classes=5), DCNConfig(parts=("head",), towers="last")
    )
    assert set(deformable(segmenter)) == {"classifier.1"}


def test_each_config_of_a_list_has_its_own_layers():
    configs = [
        DCNConfig(stages=(4,), offset_groups=2),
        DCNConfig(parts=("backbone", "head"), include=("*.layer4.*", "head.*"), modulated=False),
    ]
    with pytest.raises(ValueError, match=r"earlier configs of the list select all .* DCNConfig\(parts"):
        inject_(fcos(), [configs[0], DCNConfig(stages=(4,))])
    layers = deformable(inject_(fcos(), configs))
    assert {n: (m.offset_groups, m.modulated) for n, m in layers.items()} == {
        **{f"backbone.body.layer4.{i}.conv{j}": (2, True) for i in (0, 1) for j in (1, 2)},
        **{
            f"head.{kind}_head.conv.{i}": (1, False)
            for kind in ("classification", "regression")
            for i in (0, 3, 6, 9)
        },
    }
    assert [r.part for r in plan(fcos(), configs).replacements] == ["backbone"] * 4 + ["head"] * 8


def counted_by_part(model, x):
    """FLOPs by part from the counter's own tree of modules."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__
    body = flops[f"{root}.backbone.body"]
    neck = flops[f"{root}.backbone.fpn"]
    return {"backbone": body, "neck": neck, "head": flops["Global"] - body - neck}


@pytest.mark.parametrize("make", [fcos, lambda: rcnn("MaskRCNN")])
def test_parameters_and_flops_by_part(make, capsys):
    torch.manual_seed(0)
    model = make()
    injection = plan(model, ALL, input_size=(3, 64, 64))
    out = capsys.readouterr().out
    image = [torch.zeros(3, 64, 64)]
    assert {n: p.flops_before for n, p in injection.parts.items()} == counted_by_part(model, image)
    assert sum(p.flops_before for p in injection.parts.values()) == injection.flops_before
    assert sum(p.params_before for p in injection.parts.values()) == sum(p.numel() for p in model.parameters())
    count = Counter(r.part for r in injection.replacements)
    assert {n: p.replaced for n, p in injection.parts.items()} == count
    assert all(f"{count[part]} replaced" in out for part in count)
    neck = injection.parts["neck"]
    inject_(model, ALL, input_size=(3, 64, 64))
    assert neck.params_after == sum(p.numel() for p in model.backbone.fpn.parameters())
    assert injection.flops_after == sum(counted_by_part(model, image).values())


def test_the_plan_says_what_the_network_resizes_the_image_to(capsys):
    injection = plan(fcos(), input_size=(3, 32, 32))
    assert injection.seen_size == (64, 64)
    assert "for one image of 3x32x32, which the network resizes to 64x64" in capsys.readouterr().out
    # The stages are those of the backbone, whatever it gets.
    assert {r.stage for r in injection.replacements} == {2, 3, 4}


def test_a_detector_is_measured_in_inference_mode_as_outside():
    """There "reads the image" was said of every convolution of a head, so they stayed plain without a word."""
    config = DCNConfig(parts=("backbone", "neck", "head"))
    expected = [r.fqn for r in plan(fcos(), config).replacements]
    assert any(fqn.startswith("head") for fqn in expected)
    with torch.inference_mode():
        found = plan(fcos(), config)
    assert [r.fqn for r in found.replacements] == expected


def test_measuring_a_detector_changes_nothing():
    model = fcos().train()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plan(model)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.backbone.body.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_stages_without_timm_come_from_strides_in_the_backbone():
    injection = plan(detection.retinanet_resnet50_fpn(**SMALL), DCNConfig(stages=(3,)))
    assert [r.fqn for r in injection.replacements] == [f"backbone.body.layer3.{i}.conv2" for i in range(6)]
    ssd = plan(detection.ssdlite320_mobilenet_v3_large(**TINY))
    assert {r.part for r in ssd.replacements} == {"backbone"}
    assert {r.stage for r in ssd.replacements} >= {2, 3, 4}


SEGMENTERS = {
    "deeplabv3_resnet50": {
        "classifier.0.convs.1.0",
        "classifier.0.convs.2.0",
        "classifier.0.convs.3.0",
        "classifier.1",
    },
    "fcn_resnet50": {"classifier.0"},
}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_of_torchvision(name):
    torch.manual_seed(0)
    model = lively(getattr(segmentation, name)(**TINY, num_classes=5)).double()
    x = torch.randn(1, 3, 64, 64).double()
    before = outputs(model, x)[0]
    inject_(model, DCNConfig(parts=("backbone", "head")))
    late = {n for n in deformable(model) if n.startswith("backbone.layer")}
    assert len(late) == 13
    assert set(deformable(model)) - late == SEGMENTERS[name]
    assert torch.allclose(outputs(model, x)[0], before, atol=1e-10)


@pytest.mark.parametrize("encoder", ["tu-resnet18", "resnet18"])
@pytest.mark.parametrize("name", ["Unet", "FPN", "DeepLabV3Plus", "UPerNet"])
def test_segmenters_of_segmentation_models_pytorch(name, encoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = lively(getattr(smp, name)(encoder, encoder_weights=None, classes=4)).double()
    x = torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        before = model(x)
    able = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) >= 3}
    inject_(model, DCNConfig(parts=("backbone", "decoder")))
    found = set(deformable(model))
    assert len({n for n in found if n.startswith("encoder.")}) == 12
    assert {n for n in found if n.startswith("decoder.")} == {n for n in able if n.startswith("decoder.")}
    with torch.no_grad():
        assert torch.allclose(model(x), before, atol=1e-10)


class Own(nn.Module):
    """A user's own network; ``net`` is no name that tells its part."""

    def __init__(self, net):
        super().__init__()
        self.net = timm.create_model(net, features_only=True, out_indices=(-1,))
        width = self.net.feature_info.channels()[-1]
        self.mix = nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.ReLU())
        self.predict = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        return self.predict(self.mix(self.net(x)[0]))


@pytest.mark.parametrize(
    ("net", "stem"),
    [("resnet18", "net.conv1"), ("hrnet_w18_small", "net.conv1"), ("test_efficientnet", "net.conv_stem")],
)
def test_a_users_own_network(net, stem):
    model = lively(Own(net)).double()
    x = torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        before = model(x)
    injection = plan(model)
    assert {r.part for r in injection.replacements} == {"backbone"}
    assert {r.stage for r in injection.replacements} <= {2, 3, 4}
    assert injection.refused[stem] == "reads the image"
    inject_(model, DCNConfig(parts=("backbone", "head")))
    assert {n for n in deformable(model) if not n.startswith("net.")} == {"mix.0"}
    with torch.no_grad():
        assert torch.allclose(model(x), before, atol=1e-9)


def names(model):
    return {name: part for name, part in find_parts(model).items() if name}


def test_parts_by_name():
    conv = lambda: nn.Conv2d(4, 4, 3)  # noqa: E731
    model = nn.ModuleDict({"encoder": conv(), "decoder": conv(), "top": conv()})
    assert names(model) == {"encoder": "backbone", "decoder": "decoder", "top": "head"}
    model = nn.ModuleDict(
        {"backbone": nn.ModuleDict({"fpn": conv(), "stem": conv()}), "encoder": conv(), "decode_head": conv()}
    )
    assert names(model) == {
        "backbone": "backbone",
        "backbone.fpn": "neck",
        "backbone.stem": "backbone",
        "encoder": "neck",
        "decode_head": "decoder",
    }
    # timm's own modules belong to timm's network, whatever they are called.
    model = nn.ModuleDict({"net": timm.create_model("resnet18"), "x": conv()})
    model["net"].neck = conv()
    assert names(model)["net.neck"] == "backbone"
    assert set(find_parts(nn.Sequential(conv(), conv())).values()) == {"backbone"}


ERRORS = {
    "no such part": (
        DCNConfig(parts=("decoder",)),
        r"has the parts \['head', 'backbone', 'neck'\], but not \['dec",
    ),
    "only output layers": (
        DCNConfig(parts=("head",), include=("*.cls_logits",)),
        "computes an output of the network",
    ),
    "another part's": (DCNConfig(include=("head.*",)), r"not in include=\('head"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("verb", [plan, inject_])
def test_errors(case, verb):
    config, message = ERRORS[case]
    model = fcos()
    with pytest.raises(ValueError, match=message):
        verb(model, config)
    assert not deformable(model)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"parts": ("heads",)}, ValueError, r"some of the parts \('backbone', .*got parts=\('heads',\)"),
        ({"parts": ()}, ValueError, "some of the parts"),
        ({"parts": "head"}, TypeError, "a sequence of str for parts, got 'head'"),
        ({"parts": ("head",), "stages": (3,)}, ValueError, r"only the backbone has stages, .*\(3,\).*use include"),
        ({"towers": "first"}, ValueError, r"one of \('all', 'last'\), got towers='first'"),
        ({"stem": 1}, TypeError, "True or False, got stem=1"),
    ],
)
def test_fields(fields, error, message):
    with pytest.raises(error, match=message):
        DCNConfig(**fields)


def test_a_network_without_a_backbone_inside_has_no_other_parts():
    with pytest.raises(ValueError, match=r"ResNet has the parts \['backbone'\], .*counts as a backbone"):
        inject_(timm.create_model("resnet18"), DCNConfig(parts=("backbone", "head")))


def test_a_converted_backbone_may_get_a_head():
    model = fcos()
    inject_(model)
    with pytest.raises(ValueError, match="already converted"):
        inject_(model, ALL)
    inject_(model, DCNConfig(parts=("head",)))
    assert {n.partition(".")[0] for n in deformable(model)} == {"backbone", "head"}


def test_the_commands_take_the_parts():
    config = OmegaConf.merge(OmegaConf.structured(DCN), {"parts": ["backbone", "head"], "towers": "last"})
    assert DCNConfig(**OmegaConf.to_object(config).__dict__).parts == ("backbone", "head")


def test_a_detector_folds_on_lists_of_images():
    torch.manual_seed(0)
    model = lively(fcos())
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 80)]
    before = outputs(model, images)
    inject_(model, DCNConfig(parts=("backbone", "head")))
    moved = model.head.regression_head.conv[9]
    nn.init.constant_(moved.offset_bias, 0.5)
    for batch in (images, (images, [{}, {}])):
        folding = zoo.fold_(copy.deepcopy(model), [batch])
        assert [*folding.kept] == ["head.regression_head.conv.9"]
        assert len(folding.folded) == 12 + 7
    nn.init.zeros_(moved.offset_bias)
    zoo.fold_(model, [images])
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(model, images), strict=True))


def test_a_detector_is_saved_by_its_state_dict(tmp_path):
    model = inject_(fcos())
    with pytest.raises(ValueError, match=r"got FCOS, which .* build; save its state_dict"):
        zoo.save(model, tmp_path)
    randomise_offsets(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = inject_(fcos())
    again.load_state_dict(torch.load(tmp_path / "model.pt"))
    images = [torch.rand(3, 64, 64)]
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(model.eval(), images), outputs(again.eval(), images), strict=True)
    )


def test_a_detector_trains_after_its_conversion():
    torch.manual_seed(0)
    model = inject_(fcos(), DCNConfig(parts=("backbone", "head"))).train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    sum(model([torch.rand(3, 64, 64)], [target]).values()).backward()
    layer = model.head.regression_head.conv[9]
    assert layer.offset_weight.grad.count_nonzero() > 0
