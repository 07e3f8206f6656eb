"""The page: plain words first, nothing from elsewhere."""

import html
import re

import pytest
from mmengine.config import Config

from mmdet_sssd.commands.comparison.page import write_page
from mmdet_sssd.commands.comparison.plots import draw_plots
from mmdet_sssd.commands.comparison.report import comparison_report
from mmdet_sssd.commands.comparison.summary import summarize_all

from .synthetic import folder_of, results

COMMAND = "SSSD_DATA_ROOT='a<b' mmdet-sssd compare x.py"
DATA = dict(data_root='data', ann_file='train.json')
CONFIG = dict(
    model=dict(type='RetinaNet'),
    train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=DATA)),
)


def page_of(folder, found, with_plots=False):
    configs = {arm: Config(CONFIG) for arm in found}
    results_folder = folder_of(folder, found, configs=configs, command=COMMAND)
    report = comparison_report(found, summarize_all(found))
    plots = draw_plots(folder, found) if with_plots else []
    return write_page(report, results_folder, found, plots).read_text()


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
    found = results(baseline=[40.0], sssd=[41.0, 42.0])
    del found['sssd'][0]
    page = page_of(tmp_path, found)
    assert 'sssd shares no seed with the baseline.</b>' in page
    assert 'nan' not in page


def test_the_page_needs_no_other_file(tmp_path):
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
    assert sources == ['data:imag'] * 2  # differences, curves
    assert not re.search('<script|<link|@import|url\\(', page)


def test_the_tables_are_those_of_the_markdown(tmp_path):
    found = results(baseline=[40.0, 42.0], sssd=[41.0, 43.5])
    page = re.sub('<br><small>|</small>', ' ', page_of(tmp_path, found)).replace('−', '-')
    rows = re.findall('<tr>(.*?)</tr>', page)
    shown = [[x.strip() for x in re.findall('>([^<]+)</t', row.replace('  ', ' '))] for row in rows]
    text = comparison_report(found, summarize_all(found)).write(tmp_path / 'report.md')
    lines = [line[2:-2].split(' | ') for line in text.splitlines() if line.startswith('| ')]
    assert shown == [line for line in lines if line[0] != '---']
