"""Grade what a class handed in, so that no student can stop it, slow it down for others, or reach what is not theirs.

    release        what is graded: the exercises of an assignment and the cells they need
    submissions    finds each student's notebook under any name, and the answers in it
    roster         who is in the class
    sandbox        a process that may take so much and reach nothing
    inside/        what runs in there, on the standard library alone
    gradebook      nbgrader's gradebook, autograded notebooks and feedback
    tables         the CSV files, also for Moodle and Canvas

`python -m book.tools.grading se` does all of it; see `__main__`.
"""
