"""Operations in the form that is fastest on the platform at hand."""
