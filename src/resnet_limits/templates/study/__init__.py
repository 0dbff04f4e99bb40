"""My study: <authors (venue, year)>."""
