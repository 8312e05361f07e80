"""The example ``lifecycle``."""

#: Where Celery keeps a result: in a file, or with Redis under a key.
PLACE = r"(file results/|key )(?=celery-task-meta-)"


def test_the_story_is_as_its_readme_shows_it(story, shown):
    """It prints what its README shows."""
    assert story("lifecycle", PLACE) == shown("lifecycle", PLACE)
