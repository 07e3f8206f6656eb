"""The page: plain words first, nothing from elsewhere, pictures where there are checkpoints."""

import html
import re

import pytest
import torch
from mmengine.structures import InstanceData

from mmdet_sssd.commands.comparison.examples import _ends, image_aps
from mmdet_sssd.commands.comparison.page import write_page
from mmdet_sssd.commands.comparison.plots import draw_plots
from mmdet_sssd.commands.comparison.report import comparison_report
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.summary import summarize_all

from .synthetic import results

COMMAND = "SSSD_DATA_ROOT='a<b' mmdet-sssd compare x.py"
CONFIG = """
model = dict(type='RetinaNet')
train_dataloader = dict(dataset=dict(
    type='RepeatDataset', dataset=dict(data_root='data', ann_file='train.json')))
"""


def page_of(folder, cells, count=4, with_plots=False):
    results_folder = ResultsFolder(folder)
    for arm, by_seed in cells.items():
        results_folder.config_file(arm).parent.mkdir(parents=True)
        results_folder.config_file(arm).write_text(CONFIG)
        for seed, cell in by_seed.items():
            cell.write(results_folder.runs / arm / f'seed_{seed}.json')
    results_folder.pack(COMMAND)
    report = comparison_report(cells, summarize_all(cells))
    plots = draw_plots(folder, cells) if with_plots else []
    path = write_page(report, results_folder, cells, plots, folder / 'work', count)
    return path.read_text()


@pytest.mark.parametrize(
    ('aps', 'kind', 'claim', 'evidence'),
    [
        ([41.0, 43.1], 'better', 'sssd is better than', '2 seeds, 95% interval +0.4 to +1.7.'),
        ([39.0, 40.9], 'worse', 'sssd is worse than', '2 seeds, 95% interval −1.7 to −0.4.'),
        ([41.0, 41.0], 'unclear', 'No evidence that sssd differs from', ' −12.7 to +12.7.'),
        ([41.0], 'unclear', 'No evidence that sssd differs', '+1.0 AP over one seed, no interval.'),
        ([41.0, 43.0], 'unclear', 'No evidence that', '+1.0 AP over 2 seeds, no interval.'),
    ],
)
def test_the_evidence_in_words(tmp_path, aps, kind, claim, evidence):
    page = page_of(tmp_path, results(baseline=[40.0, 42.0], sssd=aps))
    (found,) = re.findall('<li class=.*', page)
    assert f'class="{kind}"' in found
    assert claim in found
    assert evidence in found
    assert 'Training took 1.00 times as long, with 1.00 times the memory.' in found
    assert page.index(claim) < page.index('<table>')


def test_arms_without_a_common_seed_have_no_numbers(tmp_path):
    cells = results(baseline=[40.0], sssd=[41.0, 42.0])
    del cells['sssd'][0]
    page = page_of(tmp_path, cells)
    assert 'sssd shares no seed with the baseline.</b>' in page
    assert 'nan' not in page


def test_the_page_says_what_was_compared_and_needs_no_other_file(tmp_path):
    page = page_of(tmp_path, results(baseline=[40.0, 41.0], sssd=[41.0, 43.0]), with_plots=True)
    facts = dict(re.findall('<dt>(.*?)</dt><dd>(.*?)</dd>', page))
    assert facts['Detector'] == 'RetinaNet'
    assert (facts['Arms'], facts['Seeds'], facts['Length']) == (
        'baseline, sssd',
        '0, 1',
        '2 epochs',
    )
    assert facts['Labels'] == 'train: data/train.json'
    assert html.escape(COMMAND, quote=False).replace("'", '&#39;') in page
    sources = re.findall('(?:src|href)="(.{9})', page)
    assert sources == ['data:imag'] * 3  # differences, AP against time, curves
    assert not re.search('<script|<link|@import|url\\(', page)


def test_the_tables_are_those_of_the_markdown(tmp_path):
    cells = results(baseline=[40.0, 42.0], sssd=[41.0, 43.5])
    page = re.sub('<br><small>|</small>', ' ', page_of(tmp_path, cells)).replace('−', '-')
    rows = re.findall('<tr>(.*?)</tr>', page)
    found = [[x.strip() for x in re.findall('>([^<]+)</t', row.replace('  ', ' '))] for row in rows]
    text = comparison_report(cells, summarize_all(cells)).write(tmp_path / 'report.md')
    lines = [line[2:-2].split(' | ') for line in text.splitlines() if line.startswith('| ')]
    assert found == [line for line in lines if line[0] != '---']


def test_without_checkpoints_the_page_says_how_to_get_pictures(tmp_path):
    cells = results(baseline=[40.0], sssd=[41.0])
    assert '--keep-checkpoints last' in page_of(tmp_path / 'some', cells)
    assert 'No example pictures' not in page_of(tmp_path / 'none', cells, count=0)


def test_a_page_comes_out_where_pictures_cannot_be_drawn(tmp_path):
    for arm in ('baseline', 'sssd'):
        folder = tmp_path / 'work' / arm / 'seed_0'
        folder.mkdir(parents=True)
        (folder / 'epoch_2.pth').touch()
        (folder / 'last_checkpoint').write_text('epoch_2.pth')
    page = page_of(tmp_path, results(baseline=[40.0], sssd=[41.0]))
    assert re.search(r'No example pictures: FileNotFoundError: .*baseline', page)
    assert 'sssd' in page


def instances(*rows):
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    scores, labels = (torch.tensor([row[i] for row in rows]) for i in (4, 5))
    return InstanceData(bboxes=boxes, scores=scores, labels=labels)


def test_ap_of_an_image_by_itself():
    square, other = [0, 0, 100, 100], [200, 200, 300, 300]
    truth = [
        dict(bbox=square, bbox_label=0, ignore_flag=0),
        dict(bbox=other, bbox_label=1, ignore_flag=0),
    ]
    both = instances((*square, 0.9, 0), (*other, 0.8, 1))
    swapped = instances((*square, 0.9, 1), (*other, 0.8, 0))
    one = instances((*square, 0.2, 0))
    # IoU 0.8 counts at the thresholds 0.5, 0.55 … 0.8: 7 of 10, and once of two classes
    shifted = instances((0, 0, 100, 80, 0.9, 0))
    found = image_aps([dict(instances=truth)] * 5, [both, swapped, one, shifted, instances()])
    assert found == pytest.approx([1, 0, 0.5, 0.35, 0])
    assert image_aps([dict(instances=truth)], [instances()]) == [0]


def test_examples_are_taken_from_both_ends_in_turn():
    assert _ends([5, 3, 0, 1], 3) == [1, 5, 0]
    assert _ends([2, 0, 1], 4) == [1, 2, 0]
