"""Its presence puts this folder on the import path, so that tests share helpers (`from paths import SHARED`)."""
