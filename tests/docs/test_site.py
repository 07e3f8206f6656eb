"""The documentation site, with broken links and references as errors."""

import subprocess
import sys
from pathlib import Path

import yaml

import mmdet_sssd

ROOT = Path(__file__).parents[2]


def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, '-W', 'ignore', '-m', 'sphinx', '-q', '-W', '--keep-going']
    result = subprocess.run(
        [*command, str(ROOT / 'docs'), str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    reference = (tmp_path / 'reference/models.html').read_text(encoding='utf-8')
    assert 'mmdet_sssd.models.SSSDDistiller' in reference
    assert (tmp_path / 'index.html').is_file()


def test_citation_and_changelog_are_of_this_version():
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert cited['version'] == mmdet_sssd.__version__
    assert f'## {mmdet_sssd.__version__}' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
