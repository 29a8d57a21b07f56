"""Operations in the form that is fastest on the current platform."""
