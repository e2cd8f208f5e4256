"""One task of an image as an ELF core, which debuggers open.

What is written is what the kernel writes of a task that dies (``elf(5)``, ``core(5)``, ``fs/binfmt_elf.c``): **notes**
say what each **thread** was at, and which files were mapped; **segments** are the areas of its memory.  Memory that is
as it was in its file is in no segment, as in cores of the kernel: debuggers find the file by its note.

A core is written in any order: what it has is known when the last page is there.
"""
