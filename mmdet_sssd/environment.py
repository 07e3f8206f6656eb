"""Checks that the installed packages work together, before importing from them."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

TORCH = '>=2.5'
FAMILIES = {
    'OpenMMLab': {
        'mmengine': '>=0.10,<1',
        'mmcv': '>=2.0.0,<2.2',
        'mmdet': '>=3.3,<3.4',
        'setuptools': '<81',  # mmengine imports pkg_resources
    },
    # its continuation: the same modules, from other distributions
    'OneDL': {
        'onedl-mmengine': '>=0.10.12,<1',
        'onedl-mmcv': '>=2.3,<2.4',
        'onedl-mmdetection': '>=3.5,<3.6',
    },
}
"""Supported versions by family and distribution; those in ``requirements.txt`` are tested."""

MMCV_TO_BUILD = {'OpenMMLab': 'mmcv==2.1.0', 'OneDL': 'onedl-mmcv==2.3.6'}


def installed_version(name: str) -> str | None:
    """Read the version of an installed distribution; None without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def installed_families() -> dict[str, list[str]]:
    """List the installed distributions that belong to one family alone, such as ``mmcv 2.1.0``."""
    found = {
        family: [
            f'{name} {installed}'
            for name in specs
            if name != 'setuptools' and (installed := installed_version(name))
        ]
        for family, specs in FAMILIES.items()
    }
    return {family: names for family, names in found.items() if names}


def check_environment() -> None:
    """Make sure that torch and one whole family of :data:`FAMILIES` are installed and mmcv's ops load.

    Raises:
        ImportError: if a package is missing, has an unsupported version or belongs to the other
            family, or mmcv has no compiled ops for the installed torch. The message says what to run.
    """
    installed = installed_families()
    if len(installed) > 1:
        names = '; '.join(f'{", ".join(x)} of {family}' for family, x in installed.items())
        raise ImportError(
            f'packages of two families are installed, which share their modules: {names}. Uninstall '
            'all of both, then run `bash tools/setup.sh` (OpenMMLab) or `bash tools/setup.sh --onedl` '
            'in a checkout of mmdet_sssd.'
        )
    family = next(iter(installed), 'OpenMMLab')
    option = ' --onedl' if family == 'OneDL' else ''
    specs = {'torch': TORCH, **FAMILIES[family]}
    if wrong := [problem for name in specs if (problem := _problem(name, specs[name]))]:
        others = [repr(name + spec) for name, spec in specs.items() if not name.endswith('mmcv')]
        raise ImportError(
            f'mmdet_sssd cannot work with this environment: {"; ".join(wrong)}. Run `bash '
            f'tools/setup.sh{option}` in a checkout of mmdet_sssd, or `pip install '
            f'{" ".join(others)}` and then `{build_mmcv(family)}`.'
        )
    try:
        import mmcv.ops  # noqa: F401
    except (ImportError, AssertionError) as error:  # mmcv asserts that its ops are all there
        raise ImportError(
            f'mmcv has no compiled ops that load with torch {version("torch")} ({error}). Run `bash '
            f'tools/setup.sh{option}` in a checkout of mmdet_sssd, or build them here: '
            f'`{build_mmcv(family)}`.'
        ) from error


def build_mmcv(family: str) -> str:
    """Name the command that builds a family's mmcv with ops for the installed torch."""
    mmcv = MMCV_TO_BUILD[family]
    return (
        f'pip cache remove {mmcv.partition("==")[0]}; MMCV_WITH_OPS=1 pip install '
        f'--no-build-isolation --no-deps --force-reinstall {mmcv}'
    )


def _problem(name: str, spec: str) -> str | None:
    """Describe the problem with a package's installed version; None if there is none."""
    found = installed_version(name)
    if found is None:
        return f'{name} is not installed ({spec} is needed)'
    if SpecifierSet(spec, prereleases=True).contains(found):
        return None
    return f'{name} {found} is installed, {spec} is needed'
