"""The programs that made the demo model: `prepare`, `train`, `card`, in this order."""
