"""Sphinx, with MyST: `make docs`.

The source folder is the root of the repository, so that links between docs/, configs/ and the files
beside README.md are the same here as where the files are read as they are.
"""

from mmvmamba import __version__

project = 'mmvmamba'
author = 'the mmvmamba authors'
copyright = author
release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.mathjax',
    'sphinx.ext.viewcode',
    'sphinx-mathjax-offline',
    'sphinx_copybutton',
    'sphinx_design',
]
root_doc = 'docs/index'
include_patterns = ['docs/**', 'configs/**/README.md', '*.md']
# Folders that Sphinx does not search.
exclude_patterns = ['.*', 'build', 'dist', 'work_dirs', 'data', 'mmvmamba', 'tests', '*.egg-info']
nitpicky = True

myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 4

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_numpy_docstring = False
# Types in docstrings are written as one says them, `Tensor` or `int, optional`; references in the
# text (:func:`x`, :data:`x`) and whatever of this package is named in full are checked.
nitpick_ignore_regex = [
    ('py:class', r'(?!mmvmamba\.).*'),
    ('py:(func|meth|exc|mod|attr)', r'(torch|numpy|mmengine|mmcv|mmdet|mmseg|mmpretrain|timm)\..*'),
    ('py:exc', r'huggingface_hub\..*'),
]

html_theme = 'furo'
html_title = f'mmvmamba {release}'
html_static_path = ['_static']
html_css_files = ['wide.css']
html_additional_pages = {'index': 'to_docs.html'}
templates_path = ['_templates']
html_copy_source = False
html_show_sphinx = False

linkcheck_timeout = 30
linkcheck_retries = 2
