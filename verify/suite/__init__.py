"""The chapters: one thin test per property; the node ids are the table of contents."""
