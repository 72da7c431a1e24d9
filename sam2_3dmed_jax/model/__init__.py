"""SAM2-3dMed: SAM 2 with slice relative position prediction (SRPP) and boundary detection (BD)."""
