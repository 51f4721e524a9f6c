"""Its presence puts this folder on the import path: tests share helpers (`from paths import SHARED`)."""
