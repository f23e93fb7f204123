"""CUDA sources as C++ for the emulator, and programs that are built from them.

``python translate.py kernel.cu --output program`` compiles a file with a ``main`` of its own.
"""

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
INCLUDE = FOLDER / 'include'
#: What replaces a header of the same name: its functions are inline assembly.
REPLACED = {'ptx.h': FOLDER / 'ptx.h'}
SANITIZERS = {
    '': [],
    'address': ['-fsanitize=address,undefined', '-fno-sanitize=vptr', '-fno-sanitize-recover=all'],
    'thread': ['-fsanitize=thread'],
}

COMMENTS_AND_STRINGS = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
# Element type, name, and dimensions of a variable in shared memory.
ALIGN = r'(?:(?:__align__|alignas)\s*\([^()]*\)\s*)?'
SHARED = re.compile(
    rf'(?P<extern>\bextern\s+)?{ALIGN}\b__shared__\s+{ALIGN}(?P<type>[\w:<>, ]+?)\s*{ALIGN}'
    r'\b(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\]\s*)*);'
)


def sanitizer(value=None):
    """Return the sanitizer that ``MMVMAMBA_SANITIZE`` asks for: '', 'address' or 'thread'."""
    value = os.environ.get('MMVMAMBA_SANITIZE', '') if value is None else value
    value = {'0': '', '1': 'address'}.get(value, value)
    if value not in SANITIZERS:
        raise ValueError(f'MMVMAMBA_SANITIZE is {value!r}, allowed: 1, {", ".join(SANITIZERS)}')
    return value


def mask(text):
    """Blanks out comments and strings; every character keeps its place."""
    return COMMENTS_AND_STRINGS.sub(lambda m: re.sub(r'[^\n]', ' ', m.group()), text)


def matching(text, begin, pair):
    """Place of the bracket that closes the one at ``begin``; backwards for a closing one."""
    step = 1 if text[begin] == pair[0] else -1
    depth, at = 0, begin
    while 0 <= at < len(text):
        depth += {pair[0]: step, pair[1]: -step}.get(text[at], 0)
        if depth == 0:
            return at
        at += step
    raise ValueError(f'no bracket matches that in {text[begin : begin + 40]!r}')


def kernel_begin(text, end):
    """Where the name of a kernel that ends at ``end``, with its template arguments, begins."""
    begin = len(text[:end].rstrip())
    if text[begin - 1] == '>':
        begin = matching(text, begin - 1, '<>')
    name = re.search(r'[\w:]+\s*$', text[:begin])
    if name is None:
        raise ValueError(f'no kernel before <<< in {text[max(0, end - 40) : end]!r}')
    return name.start()


def translate_launches(text):
    """Calls in place of ``kernel<<<...>>>(...)``, the last first."""
    while (at := (masked := mask(text)).rfind('<<<')) >= 0:
        begin = kernel_begin(masked, at)
        close = masked.index('>>>', at)
        opening = masked.index('(', close)
        if masked[close + 3 : opening].strip():
            raise ValueError(f'no arguments after {text[begin : close + 3]!r}')
        end = matching(masked, opening, '()')
        kernel, config = text[begin:at], text[at + 3 : close]
        arguments = text[opening + 1 : end]
        comma = ', ' if masked[opening + 1 : end].strip() else ''
        gap = text[close + 3 : opening]
        call = f'{kernel}, cuda_emulator::Config({config}){comma}{gap}{arguments}'
        text = f'{text[:begin]}cuda_emulator::launch({call}){text[end + 1 :]}'
    return text


def translate_shared(text):
    """References to the block's memory in place of ``__shared__`` variables."""
    masked, pieces, last = mask(text), [], 0
    for index, found in enumerate(SHARED.finditer(masked)):
        kind, name, dims = (found[group].strip() for group in ('type', 'name', 'dims'))
        if ',' in re.sub('<.*>', '', kind):
            raise ValueError(f'more than one variable in {found.group()!r}')
        if found['extern']:
            if dims.replace(' ', '') != '[]':
                raise ValueError(f'not an array of dynamic shared memory: {found.group()!r}')
            new = f'{kind}* const {name} = static_cast<{kind}*>(cuda_emulator::dynamic_shared());'
        else:
            new = f'auto& {name} = cuda_emulator::static_shared<{kind} {dims}, {index}>();'
        pieces += [text[last : found.start()], new, '\n' * found.group().count('\n')]
        last = found.end()
    text = ''.join([*pieces, text[last:]])
    if (left := mask(text).find('__shared__')) >= 0:
        raise ValueError(f'the emulator cannot translate {text[left : left + 80]!r}')
    return text


def translate(text, path):
    """C++ for the emulator; errors and reports name the lines of ``path``."""
    try:
        return f'#line 1 "{path}"\n' + translate_launches(translate_shared(text))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def write_if_changed(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def translate_tree(source, target, edit=lambda text, path: text):
    """Write a folder's C++ and CUDA sources to another; return those to compile.

    ``edit(text, path)`` may change a file first. A file whose text is the same keeps its time.
    """
    wanted, written = [], set()
    for path in sorted(source.rglob('*')):
        if path.suffix not in ('.cu', '.cuh', '.h', '.cpp'):
            continue
        where = REPLACED.get(path.name, path)
        name = path.relative_to(source).as_posix()
        out = target / (name + '.cpp' if path.suffix == '.cu' else name)
        write_if_changed(out, translate(edit(where.read_text(), path), where))
        written.add(out)
        if out.suffix == '.cpp':
            wanted.append(out)
    for path in target.rglob('*'):
        if path.is_file() and path not in written:
            path.unlink()
    return wanted


@contextlib.contextmanager
def without_preload():
    """Keep a sanitizer that was loaded before Python out of the compiler."""
    preload = os.environ.pop('LD_PRELOAD', None)
    try:
        yield
    finally:
        if preload is not None:
            os.environ['LD_PRELOAD'] = preload


def compiler():
    return os.environ.get('CXX', 'c++').split()


def build_runtime(folder, sanitize):
    """Compile the emulator, without the sanitizer that it works with; return its object file."""
    sources = [FOLDER / 'emulator.cpp', FOLDER / 'emulator.h', INCLUDE / 'cuda_runtime_api.h']
    key = '\0'.join([sanitize, *compiler(), *(path.read_text() for path in sources)])
    out = folder / f'emulator-{hashlib.sha256(key.encode()).hexdigest()[:16]}.o'
    if not out.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        defined = [f'-DCUDA_EMULATOR_{sanitize.upper()}'] if sanitize else []
        part = out.with_suffix(f'.{os.getpid()}.o')
        command = [*compiler(), '-std=c++17', '-O2', '-g1', '-fPIC', '-fvisibility=hidden',
                   '-fno-omit-frame-pointer', *defined, f'-I{INCLUDE}', '-c', str(sources[0]),
                   '-o', str(part)]  # fmt: skip
        subprocess.run(command, check=True)
        part.replace(out)
    return out


def build_program(source, output, folder, sanitize='', flags=()):
    """Compile a .cu file that has a ``main``."""
    translated = output.with_suffix('.cu.cpp')
    write_if_changed(translated, translate(source.read_text(), source))
    command = [*compiler(), '-std=c++17', '-O1', '-g1', *SANITIZERS[sanitize], f'-I{INCLUDE}',
               f'-I{FOLDER}', f'-I{source.parent}', *flags, str(translated),
               str(build_runtime(folder, sanitize)), '-o', str(output)]  # fmt: skip
    subprocess.run(command, check=True)
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--sanitize', choices=list(SANITIZERS), default='')
    args, flags = parser.parse_known_args()  # the rest is for the compiler
    source, output = args.source.resolve(), args.output.resolve()
    build_program(source, output, output.parent, args.sanitize, flags)


if __name__ == '__main__':
    main()
