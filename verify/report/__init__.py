"""Reports: the schema of results, and JSON, HTML, Markdown, JUnit and terminal writers over it."""
