"""Engines that are not Python objects: asked through a campaign of requests, judged like a log."""
