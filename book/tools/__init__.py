"""The tools of the book, each run as `python -m book.tools.<name>` from the root of the clone.

- `execute` runs chapters and stores their outputs, `nbval_chapters` compares them, `anatomy` checks that a chapter has
  all its parts, `assignment` makes students' copies, and `notebooks` says what a chapter's notebook is;
- `build` builds the site, `address` writes the public address where it belongs;
- `release` checks that version, changelog and tag agree, `signatures` writes what editors know of `attn_lib.create`;
- `costs` says where the time of the tests went, and which module or chapter a test is about.
"""
