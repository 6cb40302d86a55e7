"""Slides of a chapter, from its own figures, equations, drawing and text.

    python -m book.tools.slides se …                 into _build/slides/se/index.html
    python -m book.tools.slides --output ~/talks se   into another folder
    python -m book.tools.slides                       every chapter

`content` chooses what stands on which slide, `text` turns a chapter's Markdown into HTML, `deck` writes the folder: one
page and all that it needs, so that it asks no other host for anything and can be carried on a memory stick.
"""
