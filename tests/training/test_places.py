"""The places that dcn-visualize follows where none are given."""

import torch
from zoo.scripts.data.scenes.transforms import NO_CLASS
from zoo.scripts.inspect import places
from zoo.scripts.inspect.cascade import followed, record

from dcn_ops import DeformConv2d

SIZE = (40, 80)


def test_a_detector_follows_its_largest_and_smallest_object_and_what_lies_between() -> None:
    one = torch.tensor([[0.0, 0.0, 20.0, 20.0], [60.0, 10.0, 80.0, 40.0], [30.0, 30.0, 34.0, 32.0]])
    none = torch.zeros(0, 4)
    found = dict(places.of_targets([{"boxes": one}, {"boxes": none}], SIZE))
    assert list(found) == ["largest object", "smallest object", "background"]
    assert all(where[1].tolist() == [0.5, 0.5] for where in found.values())
    assert found["largest object"][0].tolist() == [25 / 40, 70 / 80]
    torch.testing.assert_close(found["smallest object"][0], torch.tensor([31 / 40, 32 / 80]))
    y, x = (found["background"][0] * torch.tensor(SIZE)).tolist()
    assert 14 <= y <= 16, "as far from the third box as from the border"
    assert 35 <= x <= 45, "and between the others"


def test_background_is_not_the_border_that_fills_up_a_batch() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    (where,) = dict(places.of_targets([{"boxes": boxes}], SIZE))["background"]
    assert (where * torch.tensor(SIZE)).tolist()[0] <= 10


def test_a_segmenter_follows_an_object_its_edge_and_the_background() -> None:
    classes = torch.zeros(40, 80, dtype=torch.uint8)
    classes[10:31, 10:31] = 3
    classes[:, 75:] = NO_CLASS
    found = dict(places.of_targets([classes], SIZE))
    pixels = {label: (where[0] * torch.tensor(SIZE)).long().tolist() for label, where in found.items()}
    assert pixels["object"] == [20, 20]
    y, x = pixels["edge of an object"]
    assert classes[y, x] == 3
    assert not classes[max(y - 1, 0) : y + 2, x - 1 : x + 2].all()
    y, x = pixels["background"]
    assert not classes[y - 18 : y + 19, x - 18 : x + 19].any()


def test_a_classifier_follows_the_same_places_in_every_image() -> None:
    found = places.of_targets(list(torch.tensor([3, 1])), SIZE)
    assert [place.tolist() for _, place in found] == [list(place) for place in torch.tensor(places.FIXED).tolist()]


def test_each_image_is_followed_at_its_own_place() -> None:
    model = torch.nn.Sequential(torch.nn.AvgPool2d(2), DeformConv2d(1, 1, 3, padding=1))
    found = record(model, torch.randn(2, 1, 16, 16))
    where = followed(found, "1", 1, torch.tensor([[0.0, 0.5], [1.0, 0.25]]))
    assert where.outputs.tolist() == [[0.5, 8.5], [14.5, 4.5]], "pixels (0, 4) and (7, 2), twice as large"
    torch.testing.assert_close(where.points.mean(1), where.outputs)
