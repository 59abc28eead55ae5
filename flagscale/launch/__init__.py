"""From a job to running hosts: place decides, render writes scripts, transport and launcher reach hosts."""
