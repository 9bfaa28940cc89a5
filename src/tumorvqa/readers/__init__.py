"""From files to a `Scan`: AbdomenAtlas folders, TotalSegmentator output, phantoms."""

from tumorvqa.readers.cases import identity, read_case
from tumorvqa.readers.folders import CaseFiles, case_files, find_cases
from tumorvqa.readers.patients import patient_group

__all__ = ["CaseFiles", "case_files", "find_cases", "identity", "patient_group", "read_case"]
