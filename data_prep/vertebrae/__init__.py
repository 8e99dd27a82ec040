"""Prepares vertebrae: from CTs, vertebra masks and a DXA table to texture pools."""
