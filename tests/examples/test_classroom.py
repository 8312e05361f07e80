"""The example ``classroom``."""

from celery_statekit import ClientState

#: Which worker is quicker is nobody's to say.
SHARES = r"(?<=by worker)\d@classroom: \d+"


def test_the_story_is_as_its_readme_shows_it(story, shown):
    """It prints what its README shows."""
    assert story("classroom", SHARES) == shown("classroom", SHARES)


def test_the_picture_is_the_machine_of_a_client(readme):
    """The Mermaid diagram in the README is the one that the library draws."""
    _, picture = readme("classroom").split("```mermaid\n")

    assert picture.partition("\n```")[0] == ClientState.flow().mermaid().rstrip()
