"""The report of a fit: what it tells (`tell`, a plain value, report.json), how that looks as one HTML file
(`page`) and as Markdown (`card`). Every figure of a page is looked up in that value by its key."""
