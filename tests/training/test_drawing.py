"""Boxes and masks over images, and the legend of their colours."""

import torch
from PIL import ImageColor
from zoo.scripts.tasks import drawing

GREY = torch.full((3, 8, 8), 100, dtype=torch.uint8)


def test_the_background_has_no_colour() -> None:
    mask = torch.zeros(8, 8, dtype=torch.long)
    mask[:4] = 1
    picture, title = drawing.pixels(GREY, mask, ("background", "nucleus"))
    assert title == "background, nucleus"
    assert torch.equal(picture[:, 4:], GREY[:, 4:])
    assert not torch.equal(picture[:, :4], GREY[:, :4])
    assert drawing.pixels(GREY, torch.zeros_like(mask), ("background", "nucleus"))[1] == "background"
    picture, _ = drawing.pixels(GREY, mask, ("road", "sky"))
    assert not (picture == GREY).all(0).any()


def test_the_legend_has_the_colours_of_the_objects() -> None:
    classes = ("RBC", "WBC")
    answer = {"boxes": torch.tensor([[1.0, 1.0, 6.0, 6.0]]), "labels": torch.tensor([1])}
    picture, title = drawing.objects(GREY, answer, classes)
    assert title == "1 WBC"
    name, colour = drawing.legend(classes)[1]
    assert name == "WBC"
    assert picture[:, 1, 1].tolist() == list(ImageColor.getrgb(colour))
    assert [name for name, _ in drawing.legend(("background", *classes))] == ["RBC", "WBC"]
    assert len(drawing.legend([str(i) for i in range(80)])) == 10
