"""One HTML page per evaluation, or per comparison of two, with everything in it: `page.write_report`."""
