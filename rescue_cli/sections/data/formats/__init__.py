"""File formats of data sets: class folders, IDX, PASCAL VOC, COCO, and folders of masks."""
