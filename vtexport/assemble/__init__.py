"""The files of a bundle: written in a folder of their own or beside a checkpoint's, and described for the manifest."""
