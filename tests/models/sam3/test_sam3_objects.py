"""Choosing and placing objects: expectations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam3.models.detector import PromptTokens
from medsam3.models.sam3.objects import (
    best_for_boxes,
    click_points,
    exemplar_boxes,
    mask_iou,
    padded,
    stretched,
    unlike,
    upsampled,
)
from medsam3.models.sam3.tracker import model_points
from medsam3.prompts import Box, Point


def test_a_frame_is_stretched_to_the_square_and_one_of_its_size_left_alone() -> None:
    grey = np.full((30, 70, 3), 77, dtype=np.uint8)
    assert stretched(grey, 56).shape == (56, 56, 3)
    assert (stretched(grey, 56) == 77).all()
    square = np.zeros((56, 56, 3), dtype=np.uint8)
    assert stretched(square, 56) is square


def test_exemplars_are_cut_at_the_frames_border_and_padded() -> None:
    # 20 x 10 pixels, edges at -0.5 to 19.5 and -0.5 to 9.5
    boxes = exemplar_boxes([[Box(-5, -5, 9.5, 4.5), Box(9.5, 4.5, 14.5, 9.5, is_positive=False)], []], (10, 20))
    assert boxes.cxcywh[0].tolist() == [[0.25, 0.25, 0.5, 0.5], pytest.approx([0.625, 0.75, 0.25, 0.5])]
    assert boxes.is_positive.tolist() == [[True, False], [False, False]]
    assert boxes.is_used.tolist() == [[True, True], [False, False]]


def test_no_exemplar_is_one_unused_slot() -> None:
    assert exemplar_boxes([[]], (10, 20)).is_used.tolist() == [[False]]


def test_phrases_of_different_length_are_padded_with_a_mask() -> None:
    tokens = [PromptTokens(torch.ones(1, n, 4), torch.ones(1, n, dtype=torch.bool)) for n in (3, 5)]
    batch = padded(tokens)
    assert batch.features.shape == (2, 5, 4)
    assert batch.mask.tolist() == [[True, True, True, False, False], [True] * 5]


def test_boxes_are_objects_of_two_corners_and_points_one_object() -> None:
    points, labels = click_points((Box(1, 2, 5, 6), Box(3, 4, 7, 9)), ())
    assert points.tolist() == [[[1, 2], [5, 6]], [[3, 4], [7, 9]]]
    assert labels.tolist() == [[2, 3], [2, 3]]
    points, labels = click_points((Box(1, 2, 5, 6),), (Point(4, 5), Point(0, 1, is_positive=False)))
    assert points.tolist() == [[[1, 2], [5, 6], [4, 5], [0, 1]]]
    assert labels.tolist() == [[2, 3, 1, 0]]


def test_points_go_to_the_same_place_of_the_stretched_square() -> None:
    # column 0 of 20 has its centre at 1/40 of the width, which is 5.6 of 224 pixels, so pixel 5.1
    placed = model_points(np.array([[0.0, 0.0], [19.5, 9.5]]), (10, 20), 224)
    assert placed.tolist() == [pytest.approx([5.1, 10.7]), pytest.approx([223.5, 223.5])]


def test_each_box_gets_the_best_score_times_overlap_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], dtype=float)
    scores = np.array([0.3, 0.9, 0.8])
    # IoU with the asked box 1 and .5: .3 against .45
    assert best_for_boxes(scores, boxes, [Box(0, 0, 10, 10)]) == [1]
    assert best_for_boxes(scores, boxes, [Box(0, 0, 10, 10), Box(0, 0, 10, 5), Box(55, 55, 65, 65)]) == [1, 2]
    assert best_for_boxes(scores, boxes, [Box(80, 80, 90, 90)]) == []


def test_of_like_candidates_the_first_stays() -> None:
    iou = np.array([[1, 0.6, 0.1], [0.6, 1, 0.6], [0.1, 0.6, 1]])
    assert unlike(iou, 0.5) == [0, 2]
    assert unlike(iou, 0.05) == [0]
    assert unlike(np.zeros((0, 0)), 0.5) == []


def test_mask_iou_is_overlap_over_union() -> None:
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, :2, :4] = True  # 8
    masks[1, 1:3, :4] = True  # 8, of which 4 in common
    assert mask_iou(masks).tolist() == [pytest.approx([1, 4 / 12, 0]), pytest.approx([4 / 12, 1, 0]), [0, 0, 0]]


def test_masks_come_back_at_the_frames_size_and_empty_ones_do_not() -> None:
    logits = torch.full((2, 4, 4), -1.0)
    logits[0, :, 2:] = 1.0  # the right half
    found = upsampled(logits, [0.9, 0.8], (6, 10))
    assert len(found) == 1
    assert found[0].score == 0.9
    assert found[0].start == (0, 0, 5)
    assert found[0].crop.shape == (1, 6, 5)
    assert upsampled(torch.zeros(0, 1, 1), [], (6, 10)) == []
