"""Boxes and masks over images, and the legend of their colours."""

import torch
from PIL import ImageColor
from zoo.scripts.config.schema import Head
from zoo.scripts.tasks import drawing
from zoo.scripts.tasks.detection import Detection

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


def test_the_title_of_an_output_says_from_which_score_on_boxes_are_drawn() -> None:
    image, classes = torch.zeros(3, 8, 8, dtype=torch.uint8), ["disc", "square"]
    truth = {"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 7.0, 7.0]]), "labels": torch.tensor([1, 1])}
    task = Detection(Head(name="fcos"), classes)
    assert task.picture(image, truth, classes)[1] == "2 square"
    drawn, title = task.picture(image, truth | {"scores": torch.tensor([0.29, 0.31])}, classes)
    assert title == "1 square (score ≥ 0.3)"
    assert not drawn[:, 0, 0].any(), "the first box is left out"
