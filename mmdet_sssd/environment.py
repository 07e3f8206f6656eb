"""Checks that the installed packages work together, before importing from them."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

SUPPORTED = {
    'torch': '>=2.4',
    'mmengine': '>=0.10,<1',
    'mmcv': '>=2.0.0,<2.2',
    'mmdet': '>=3.3,<3.4',
    'setuptools': '<81',
}
"""Supported versions by package; ``requirements.txt`` has the tested ones."""

REBUILD_MMCV = (
    'pip cache remove mmcv; MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps '
    '--force-reinstall mmcv==2.1.0'
)


def check_environment() -> None:
    """Make sure that the packages of :data:`SUPPORTED` are installed and mmcv's ops load.

    Raises:
        ImportError: if a package is missing or has an unsupported version, or mmcv has no compiled
            ops for the installed torch. The message says what to run.
    """
    wrong = [problem for name in SUPPORTED if (problem := _version_problem(name))]
    if wrong:
        others = [repr(name + spec) for name, spec in SUPPORTED.items() if name != 'mmcv']
        raise ImportError(
            f'mmdet_sssd cannot work with this environment: {"; ".join(wrong)}. Run `bash '
            f'tools/setup.sh` in a checkout of mmdet_sssd, or `pip install {" ".join(others)}` and '
            f'then `{REBUILD_MMCV}`.'
        )
    try:
        import mmcv.ops  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'mmcv {version("mmcv")} has no compiled ops that load with torch '
            f'{version("torch")} ({error}). Run `bash tools/setup.sh` in a checkout of mmdet_sssd, '
            f'or build them here: `{REBUILD_MMCV}`.'
        ) from error


def _version_problem(name: str) -> str | None:
    """Describe the problem with a package's installed version; None if there is none."""
    spec = SUPPORTED[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        return f'{name} is not installed ({spec} is needed)'
    if SpecifierSet(spec, prereleases=True).contains(found):
        return None
    return f'{name} {found} is installed, {spec} is needed'
